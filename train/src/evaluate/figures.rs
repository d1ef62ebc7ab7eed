//! The figures of an evaluation as those who show them see them: the line while it runs, the table, the page, the curves. None of these knows tasks.

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// As for an accuracy.
    Higher,
    /// As for a divergence.
    Lower,
}

/// One figure, of the student alone or of both models against gold answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Its key in the log and in `evaluation.json`.
    pub key: &'static str,
    /// The key of the teacher's, where it has one.
    pub teacher_key: Option<&'static str>,
    /// What it is, in tables.
    pub title: &'static str,
    /// The student's.
    pub student: f64,
    /// The teacher's own, where it has one and it is known.
    pub teacher: Option<f64>,
    /// Which way is good.
    pub better: Better,
    /// What it is called in the line of an evaluation while it runs, and what follows its number; none where it is left out there.
    pub said: Option<(&'static str, &'static str)>,
    /// The chart that shows it and its name there, none where no chart does. Figures of one chart have one scale.
    pub chart: Option<(&'static str, &'static str)>,
}

impl Figure {
    /// A figure that compares the student with its teacher.
    pub fn of_student(key: &'static str, title: &'static str, student: f64, better: Better) -> Self {
        Self { key, teacher_key: None, title, student, teacher: None, better, said: None, chart: None }
    }

    /// A figure that compares each model with gold answers.
    pub fn of_both(keys: [&'static str; 2], title: &'static str, [student, teacher]: [f64; 2], better: Better) -> Self {
        Self { teacher_key: Some(keys[1]), teacher: Some(teacher), ..Self::of_student(keys[0], title, student, better) }
    }

    /// With a place in the line of an evaluation.
    pub fn said(self, name: &'static str, unit: &'static str) -> Self {
        Self { said: Some((name, unit)), ..self }
    }

    /// With a place in a chart.
    pub fn in_chart(self, chart: &'static str, name: &'static str) -> Self {
        Self { chart: Some((chart, name)), ..self }
    }

    /// How the student's stands to the teacher's own, for a person; nothing where the teacher has none, or none that a ratio makes sense of.
    pub fn against_teacher(&self) -> String {
        match (self.teacher.filter(|teacher| *teacher > 0.0 && self.student >= 0.0), self.better) {
            (None, _) => String::new(),
            (Some(teacher), Better::Higher) => format!("{:.1} % of the teacher's", 100.0 * self.student / teacher),
            (Some(teacher), Better::Lower) => format!("{:.2} times the teacher's", self.student / teacher),
        }
    }
}

/// The charts of `figures`, in order, each with the figures that it shows and their names.
pub fn charts(figures: &[Figure]) -> Vec<(&'static str, Vec<(&'static str, Figure)>)> {
    let mut charts: Vec<(&'static str, Vec<(&'static str, Figure)>)> = Vec::new();
    for figure in figures {
        let Some((title, name)) = figure.chart else { continue };
        match charts.iter_mut().find(|chart| chart.0 == title) {
            Some(chart) => chart.1.push((name, *figure)),
            None => charts.push((title, vec![(name, *figure)])),
        }
    }
    charts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_one_chart_stand_together() {
        let figure = |key| Figure::of_student(key, "", 1.0, Better::Higher);
        let figures = [figure("a").in_chart("x", "1"), figure("b"), figure("c").in_chart("y", ""), figure("d").in_chart("x", "2")];
        let names = |chart: &(&str, Vec<(&'static str, Figure)>)| chart.1.iter().map(|(_, figure)| figure.key).collect::<String>();
        assert_eq!(charts(&figures).iter().map(names).collect::<Vec<_>>(), ["ad", "c"]);
    }

    #[test]
    fn ratios_are_told_where_they_say_something() {
        let told = |student, teacher, better| Figure::of_both(["", ""], "", [student, teacher], better).against_teacher();
        assert_eq!(told(0.9, 0.8, Better::Higher), "112.5 % of the teacher's");
        assert_eq!(told(4.0, 3.2, Better::Lower), "1.25 times the teacher's");
        assert_eq!([told(0.5, 0.0, Better::Higher), told(-0.1, 0.5, Better::Higher)], [String::new(), String::new()]);
    }
}
